import java.net.URI;
import java.util.HexFormat;
import java.util.Random;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyProvider;
import org.apache.hadoop.crypto.key.KeyProviderCryptoExtension;
import org.apache.hadoop.crypto.key.KeyProviderCryptoExtension.EncryptedKeyVersion;
import org.apache.hadoop.crypto.key.KeyProviderFactory;

/**
 * Has Hadoop's own KeyProviderCryptoExtension make, open and re-encrypt EDEKs over a Java keystore with
 * known material, and prints them, one a line, in hex, '-' for no bytes:
 *
 *   key NAME@VERSION MATERIAL
 *   edek NAME@VERSION IV EDEK DEK
 *   reencrypted OLD_VERSION NEW_VERSION IV OLD_EDEK NEW_EDEK
 */
public final class HadoopEDEKs {
  public static void main(String[] args) throws Exception {
    Configuration conf = new Configuration();
    KeyProvider store = KeyProviderFactory.get(new URI("jceks://file@" + args[0]), conf);
    KeyProviderCryptoExtension kms = KeyProviderCryptoExtension.createKeyProviderCryptoExtension(store);
    Random fixed = new Random(1);
    for (int bits : new int[] {128, 192, 256}) {
      String name = "k" + bits;
      KeyProvider.Options options = new KeyProvider.Options(conf);
      options.setBitLength(bits);
      print("key", name + "@0", material(kms.createKey(name, bytes(fixed, bits / 8), options)));
      EncryptedKeyVersion[] made = new EncryptedKeyVersion[20];
      for (int i = 0; i < made.length; i++) {
        made[i] = kms.generateEncryptedKey(name);
        print("edek", name + "@0", made[i].getEncryptedKeyIv(), material(made[i].getEncryptedKeyVersion()),
            material(kms.decryptEncryptedKey(made[i])));
      }
      // Lengths that HDFS never asks for, and IVs whose counter overflows its low 64 bits, or all 128.
      byte[][] ivs = {bytes(fixed, 16), new byte[16], wraps(fixed, 0), wraps(fixed, 1), wraps(fixed, 2)};
      for (byte[] iv : ivs) {
        for (int length : new int[] {0, 1, 15, 16, 17, 24, 31, 32, 33, 48, 64}) {
          byte[] edek = bytes(fixed, length);
          print("edek", name + "@0", iv, edek, material(kms.decryptEncryptedKey(
              EncryptedKeyVersion.createForDecryption(name, name + "@0", iv, edek))));
        }
      }
      print("key", name + "@1", material(kms.rollNewVersion(name, bytes(fixed, bits / 8))));
      for (EncryptedKeyVersion old : made) {
        EncryptedKeyVersion now = kms.reencryptEncryptedKey(old);
        print("reencrypted", old.getEncryptionKeyVersionName() + " " + now.getEncryptionKeyVersionName(),
            now.getEncryptedKeyIv(), material(old.getEncryptedKeyVersion()), material(now.getEncryptedKeyVersion()));
      }
    }
  }

  private static byte[] wraps(Random random, int last) {
    byte[] iv = bytes(random, 16);
    java.util.Arrays.fill(iv, 8, 16, (byte) 0);
    iv[15] = (byte) last;
    return iv;
  }

  private static byte[] bytes(Random random, int n) {
    byte[] b = new byte[n];
    random.nextBytes(b);
    return b;
  }

  private static byte[] material(KeyProvider.KeyVersion version) {
    return version.getMaterial();
  }

  private static void print(String what, String version, byte[]... fields) {
    StringBuilder line = new StringBuilder(what).append(' ').append(version);
    for (byte[] field : fields) {
      line.append(' ').append(field.length == 0 ? "-" : HexFormat.of().formatHex(field));
    }
    System.out.println(line);
  }
}
