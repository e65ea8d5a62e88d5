import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyProvider;
import org.apache.hadoop.crypto.key.KeyProviderCryptoExtension;
import org.apache.hadoop.crypto.key.KeyProviderFactory;

/** Generates and decrypts EDEKs of the key "k" through Hadoop's load-balancing client: Generate URI COUNT. */
public final class Generate {
  public static void main(String[] args) throws Exception {
    Configuration conf = new Configuration();
    // A small cache, so that the client requests each EDEK only when it is needed.
    conf.setInt("hadoop.security.kms.client.encrypted.key.cache.size", 2);
    conf.setFloat("hadoop.security.kms.client.encrypted.key.cache.low-watermark", 0.5f);
    KeyProvider kms = KeyProviderFactory.get(new URI(args[0]), conf);
    System.out.println(kms.getClass().getSimpleName());
    KeyProviderCryptoExtension crypto = KeyProviderCryptoExtension.createKeyProviderCryptoExtension(kms);
    // The client uses the next host for each request. If generates and decrypts
    // alternated, all generates could reach the same host.
    List<KeyProviderCryptoExtension.EncryptedKeyVersion> edeks = new ArrayList<>();
    for (int i = 0; i < Integer.parseInt(args[1]); i++) {
      edeks.add(crypto.generateEncryptedKey("k"));
    }
    for (KeyProviderCryptoExtension.EncryptedKeyVersion e : edeks) {
      System.out.println("opened " + crypto.decryptEncryptedKey(e).getMaterial().length);
    }
    System.exit(0);
  }

  private Generate() { }
}
