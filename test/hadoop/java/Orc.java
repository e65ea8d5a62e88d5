import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.Base64;
import org.apache.hadoop.conf.Configuration;
import org.apache.orc.EncryptionAlgorithm;
import org.apache.orc.impl.HadoopShims.KeyMetadata;
import org.apache.orc.impl.HadoopShimsCurrent;
import org.apache.orc.impl.KeyProvider;
import org.apache.orc.impl.LocalKey;

/**
 * Uses ORC's own classes for column encryption, like a writer and a reader of a file. Arguments and answers replace the
 * file's footer. Each line of standard input is a command:
 *
 * <pre>
 * write PROVIDER KEY                               answer: ok VERSION ALGORITHM ENCRYPTED DECRYPTED
 * read PROVIDER KEY VERSION ALGORITHM ENCRYPTED    answer: ok DECRYPTED
 * </pre>
 *
 * VERSION is a number. ENCRYPTED and DECRYPTED are a local key in base64. The answer of a failed command is "error
 * TEXT".
 */
public class Orc {
  public static void main(String[] unused) throws Exception {
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line; (line = in.readLine()) != null; ) {
      String answer;
      try {
        answer = "ok " + run(line.split(" "));
      } catch (Throwable t) {
        answer = "error " + t;
      }
      System.out.println(answer.replace('\n', ' '));
      System.out.flush();
    }
  }

  private static String run(String[] words) throws Exception {
    Configuration conf = new Configuration();
    conf.set("hadoop.security.key.provider.path", words[1]);
    KeyProvider keys = new HadoopShimsCurrent().getHadoopKeyProvider(conf, new SecureRandom());
    switch (words[0]) {
      case "write":
        KeyMetadata current = keys.getCurrentKeyVersion(words[2]);
        LocalKey local = keys.createLocalKey(current);
        return current.getVersion() + " " + current.getAlgorithm().name() + " " + encode(local.getEncryptedKey()) + " "
            + encode(local.getDecryptedKey().getEncoded());
      case "read":
        KeyMetadata stored = new KeyMetadata(words[2], Integer.parseInt(words[3]), EncryptionAlgorithm.valueOf(words[4]));
        return encode(keys.decryptLocalKey(stored, Base64.getDecoder().decode(words[5])).getEncoded());
      default:
        throw new IllegalArgumentException(words[0]);
    }
  }

  private static String encode(byte[] b) {
    return Base64.getEncoder().encodeToString(b);
  }
}
